"""The figures: one function each, over plain summary data, a file to a subject.

The page sets the colours of text and grid lines, which depend on the reader's colour scheme; the
colours here are legible on white and on near-black, and no meaning rests on colour alone.
"""
