"""Exhaustive models of the plane's protocol: leases, fences, grants, approvals.

`python -m models` explores them; see docs/model.md for what is modelled and what is not.
"""
