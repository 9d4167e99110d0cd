"""Load with an account of every message, counter and event, while something happens to the cluster.

python -m tests.cluster.nemesis --list
python -m tests.cluster.nemesis                        every row, at the durability it is about
python -m tests.cluster.nemesis kill/replicated --seconds 60
"""
