"""Where the runs of a grid are performed: in this process, in several of this machine, or on a Ray cluster."""
