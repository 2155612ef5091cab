"""Run by an interpreter of their own, standard library only: nothing here may import anything of ours."""
