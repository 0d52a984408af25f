"""Deliberate faults in the pass, one at a time: does the proof refuse what they make, do the tests notice?"""
