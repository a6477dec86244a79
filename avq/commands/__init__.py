"""Library functions of the commands, one file per command; ``avq.cli`` parses the flags and prints the results.

A function returns the object of its command's ``--json``, typed as ``...Json``. Import a function from its own file:
commands on bundles must not load the onnx package.
"""
