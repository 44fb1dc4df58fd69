"""Tables that are fitted to one network: `fastdiff tune MODEL`.

subject       the network as a function of (x, t) for prompts, and what its samples are compared to
rollout       a plan run on a batch; what a changed plan shares with the run before is not run again
general       the most general explicit table of N rows, and any plan written as one
gauss_newton  the least squares of its end point, by finite differences
untuned       every sampler and spacing of the registry at that number of calls
search        the grid, then the coefficients
score         distances on seeds and prompts that the search never saw
card          the Markdown beside the plan
run           the whole command, resumed from its folder

The time grid is searched as in LD3 (Tong et al. 2024, arXiv:2405.15506) and GITS (Chen et al. 2024,
arXiv:2405.11326), the coefficients as in S4S (Frankel et al. 2025, arXiv:2502.17423): the distance
of the end points of student and teacher runs.  The method here is our own: Gauss-Newton.
"""
