"""Plan the rounds: a file for each stage of each round, and what round 1 finds where later ones find the round before."""

from pathlib import Path

from prefdag.config.dpo_text import DpoText
from prefdag.config.rounds import Rounds
from prefdag.runtime.artifacts import write_json, writing
from prefdag.runtime.stage import stage

PLAN = Path("data/rounds/plan")
NO_PAIRS = Path("data/rounds/0/pairs")
GOOD = Path("reports/rounds/0.json")


@stage
def main(rounds: Rounds, dpo_text: DpoText) -> None:
    from prefdag.rounds.plan import plans
    from prefdag.rounds.supported import check_training

    if rounds.count:
        check_training(dpo_text)
    with writing(PLAN) as folder, writing(NO_PAIRS) as no_pairs, writing(GOOD) as good:
        for number, stages in plans(rounds).items():
            for name, plan in stages.items():
                write_json(folder / str(number) / f"{name}.json", plan)
        write_json(no_pairs / "summary.json", {"pairs": 0, "round": 0})
        write_json(good, {"go": True, "round": 0})


if __name__ == "__main__":
    main.run()
