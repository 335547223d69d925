"""One reader per way of answering, all with `Reader`'s three names; by_method chooses.

A reader turns rows into probabilities per label. Each is imported when it is wanted: no method pays for another's
libraries.
"""
