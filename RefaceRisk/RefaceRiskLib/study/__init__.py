"""A study of a whole cohort: deface, reface, measure and link every subject; tables, tests, figures, a report.

================  =========================================================================================
``participants``  who takes part, from a table or a folder
``plan``          what is asked for, and the key that says whether a result on disk still answers it
``ledger``        finished steps on disk, each with the hashes of what it read and wrote; the run's lock
``subject``       one subject: all defacers on one registration, all refacings, all distances
``linkage``       which original each processed face looks most like, within the cohort alone
``muscle``        what the heads tell about muscle, where the table knows of it
``engine``        subjects handed out to processes, here or on a cluster
``statistics``    paired tests over subjects, intervals, rates
``figures``       distances and match curves as pictures
``page``          the report
``run``           all of it in order
================  =========================================================================================
"""
