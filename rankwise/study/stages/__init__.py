"""The stages of a study: a kind of stage is one file.

It says what it reads besides the scored tasks (``inputs``: the planner walks over the kinds, puts
the data into ``StudyPlan.inputs``, and their fingerprints and tokens into ``study.json``), where
its record is and which fingerprint the record must have, what it needs, its work and its memory,
how the record is read back, and what the stage does (``do``, given a ``StudyContext``). Its work
stands beside it. What needs torch is imported inside functions, so no file here loads it.

``graph`` has the only list of kinds and makes the graph from ``study.json`` alone; planning,
``run``, ``status``, ``verify``, ``study.reading`` and the time left walk over the same objects and
ask the kind. A stage's id stays when the study is planned again. Training is in three files:
``training`` says what is trained on what, ``training_pass`` trains one pass and writes what comes
of it, ``own_texts`` has the rows that arms against forgetting read besides.

A stage that fails is recorded in ``failures/``; what does not need it goes on. What a verdict
names is planned after it: ``conclusion.with_deployed`` writes into ``study.json`` which runs
``deploy`` is about, and their ``CheckForm`` stages score each form like a model, under the name
``<run>/forms/<form>``.
"""
