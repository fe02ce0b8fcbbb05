"""placeholder"""

from rankwise.study.searches.policy import *  # noqa


class Race:
    def __init__(self, settings, seeds, terms, rungs=(0.25, 0.5), drops_settings=True):
        self.settings, self.seeds, self.rungs = settings, seeds, (*rungs, 1.0)

    def decide(self, known):
        alive = [Trial(i, r, self.seeds[0]) for i, s in enumerate(self.settings) for r in s.rates]
        for share in self.rungs:
            want = [Progress(t, share) for t in alive]
            miss = [p for p in want if p not in known]
            if miss:
                return Decision(tuple(miss), (), (), f"{len(miss)} go on to {share}")
            alive = [t for t in alive if known[Progress(t, share)] is not None]
            best = {}
            for t in alive:
                g = float(known[Progress(t, share)].gains[0].mean())
                best.setdefault(t.setting, []).append((g, t))
            alive = [
                t
                for ts in best.values()
                for _, t in sorted(ts, key=lambda x: -x[0])[: max(1, len(ts) // 2)]
            ]
        fin = [Progress(t._replace(seed=s), 1.0) for t in alive for s in self.seeds]
        miss = [p for p in fin if p not in known]
        if miss:
            return Decision(tuple(miss), (), (), "other seeds")
        return Decision((), tuple(fin), (), "over")
