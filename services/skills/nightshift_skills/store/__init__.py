"""What the skills service keeps: runs, approvals, calls, the lock, fences, pre-emptions, the sealed chain."""
