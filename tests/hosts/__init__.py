"""Run other projects' own test suites against Synap.

    python -m tests.hosts.cachelib PATH_TO_A_CHECKOUT

Each module starts a service of its own, puts Synap where the host's tests expect their usual service, and runs those of
its tests that say what such a thing has to do. What is left out is listed there, with the reason. The suites are not in
this repository: each module says where they come from. The host's test requirements have to be installed.
"""
