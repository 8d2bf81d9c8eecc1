"""Tuning: every loss gets the same budget of trials over its own parameters and the learning rate (`tune:` in a suite).

A trial is a cell whose test patients are the validation patients, run and recorded like any other. A study, the trials
of one loss, model, data set and fold, is a function of these records: it is replayed, never stored.
"""
