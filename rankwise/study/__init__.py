"""A study as work: what is to be done, in which order, and doing it.

Begin with ``run.run_study``: it leads a study from the lock to the verdict.
``planning.plan.plan_study`` makes the plan, ``stages.graph.stages`` the stages of a plan,
``stages/gauges.py`` is one whole kind of stage, and ``executors.local`` does them.
``reading.read_results`` and ``conclusion.conclude`` read the records back and judge; they need no
torch. ``searches`` are pure policies of what is trained next, and ``observer`` has the events.
"""
