"""Rates and other settings found by validation accuracy: spaces, trials, studies of Optuna."""
