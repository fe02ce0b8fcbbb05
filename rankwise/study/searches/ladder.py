from rankwise.study.searches.race import Race


class Ladder(Race):
    pass
