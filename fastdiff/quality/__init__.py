"""Pictures against steps, on the built-in model: `fastdiff bench quality`.

samplers  who runs: the drop-in class of every sampler
runs      pictures of one sampler at one number of steps, their oracle, their time; the reference
record    the numbers as JSON, written after every measurement; as CSV
ranking   the parts of a record, summed
picture   the SVG
page      the Markdown page and the sentence of the README
"""
