"""Analyse a model. Read: metadata, preprocess_search, fold_input, analyse."""
