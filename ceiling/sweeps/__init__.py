"""Sweeps: one configuration, many points; one table and one figure over all of them.

A point is a name and the values that it changes. Stages that several points need (a prior, arms that a point leaves
alone) are made once; points then run side by side as processes, or as a Slurm job array.

    WORKDIR/sweep.json               the points and their whole configurations: what a job reads
    WORKDIR/stages/                  what points share; WORKDIR/NAME/stages has links to it
    WORKDIR/NAME/                    the run of a point, as any other; output.txt is what its process printed
    WORKDIR/results.json, sweep.csv, sweep.html
"""
