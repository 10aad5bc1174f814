"""What a model says of texts, tensor by tensor: statistics for the methods that use data.

`texts` chooses the texts, `layered_model` runs a model one layer at a time, `forward_pass` and
`backward_pass` take statistics on the way, `calibrate` puts them in a file.
"""
