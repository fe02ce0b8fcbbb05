"""Who does the units of a study: this process, or the tasks of a Ray cluster.

    study.run ─▶ agenda ─units that can begin─▶ local
        ▲                                   └─▶ ray ─offers─▶ desk ─units─▶ task, on any node
        │                                                      │
        └── study folder ◀─files, the record last─ desk ◀─files, events

One process leads a study: it holds the folder's lock from plan to verdict, plans, has units done,
asks searches and deployments what comes next, and concludes. An executor is a function of the
context and the agenda that returns when nothing is left that could be done.

A task of Ray is a worker: it is sent the plan, and does one unit after the other while there are
any, with the base in memory. It copies what a unit reads into a folder, and does it there by
``local``. Its events, and the names of files that were made or removed, go to the ``Desk``, an
actor on the leader's node, which takes letters of the latest attempt at a unit only. The leader
moves the files into the study, the record last, and only then tells the agenda. Where a node sees
the study's folder, the attempt's folder is ``.tasks/<unit>/<attempt>/`` there and nothing is
copied.
"""
