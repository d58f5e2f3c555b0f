"""How good the edits are: photos damaged on purpose, rival methods, figures, tables and sheets."""
