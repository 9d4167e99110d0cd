"""Load with an account of every message, counter and event, while something happens to the cluster.

python -m tests.cluster.nemesis --list
python -m tests.cluster.nemesis                        every row: each thing that can happen, at each durability
python -m tests.cluster.nemesis "kill/*" --seconds 60
"""
