"""Plug-in skills: other people's code, planned in a child process that holds one socket and nothing else.

discovery, manifest   what is installed, what it declares, its digest
layers                what the kernel offers, what the operator goes without
sandbox, seccomp      the child: made, watched, killed (`inside/` runs in it, standard library only)
frames, broker        what is said over the socket: typed, bounded, timed
host                  skills made of it; audit; the list
"""
