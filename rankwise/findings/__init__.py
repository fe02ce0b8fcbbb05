"""From records to numbers, verdicts and sentences; no torch, no files.

Begin with ``recommendation.recommend``: it judges one study by the rule of ``decision``, on the
options and item-by-item gains of ``options.OptionGains``. ``study.StudyFindings`` lists everything
else that is said, a field for each finding; ``prompting`` is one whole finding, and
``comparison.compare`` is what most of them are made of. ``stats`` has the estimates and intervals.
Whatever pairs models raises ``RecordError`` where they were scored on different items, or a score
is missing.
"""
