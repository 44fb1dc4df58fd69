"""Everything that is worth measuring on one GPU, in stages.  `python -m benchmarks.campaign`.

    __main__    the command: which stages, how long, where to
    stages      what stages there are
    runner      a stage in a process of its own: budget, crashes, what is left for the next time
    task        what a stage is given: the time left, what is done already, where its rows go
    files       which results file is begun or continued
    record      the results file: read, written after every row, never half
    targets     what was hoped for, and whether it was reached
    show        the file as a table

A row is a dict: id, benchmark, case, status, and, if that is "measured", times in microseconds and
what one timed call moves and computes (bytes, flops, repeats).  Ratios and fractions are not
stored, since all follow.  A row whose check failed has no times.
"""
