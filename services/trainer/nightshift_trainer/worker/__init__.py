"""The process that trains.

Nothing outside this package imports torch, and only `backends`, `exact`, `snapshot`, `rows` and `training`
in it do, so that the service stays small and never touches the GPU.
"""
