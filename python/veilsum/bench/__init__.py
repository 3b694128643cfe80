"""What aggregation costs on this machine, beside what else is installed (`veilsum bench`).

A section (mean, codec, rule, masked, transport) is a list of cases; a case is one payload and the
contenders that work on it, ours and peers. Each contender runs in a process of its own, is checked
against a float64 reference first, and is then timed in turn with the others, round by round
(sides.py). The suites in bench/ at the top of the repository are made of the same parts.

Hosts and plotting libraries are imported where they are used, in the processes that measure.
"""
