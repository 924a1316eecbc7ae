"""Many slides to feature files: one bad slide never stops the others, a rerun goes on.

`cohort` is the public function; `job` what is done with one slide; `engines` and `on_ray` where;
`progress` and `report` what is told of it.
"""
