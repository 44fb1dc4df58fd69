"""Error against calls of the network, on data with an exact answer: `fastdiff bench accuracy`.

mixture      the data, its perfect network and its exact probability flow
problem      start, network as a function of (x, t), errors
contestants  who runs: every solver of the registry and its class of diffusers, every spacing
runs         one contestant at one budget
record       the numbers as JSON, written after every contestant
ranking      what is best at a budget
picture      the SVG
page         the Markdown page and the sentence of the README
"""
