"""What a model is: its head, its preprocessing, its classes. Read: told, trial, fold_input, frontend, host."""
