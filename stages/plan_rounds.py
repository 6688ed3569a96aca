"""Plan the rounds: a file for each stage of each round, and what round 1 finds where later ones find the round before.

This stage has the code and the parameters of the rounds' stages as its own dependencies. Each plan has a hash of those of its
stage, so the stages of a round that is on run again if theirs change.
"""

from pathlib import Path

from prefdag.config.constraints import Constraints
from prefdag.config.dpo_text import DpoText
from prefdag.config.format_pairs import FormatPairs
from prefdag.config.loss import Loss
from prefdag.config.loss_options import LossOptions
from prefdag.config.rounds import Rounds
from prefdag.runtime.artifacts import read_json, write_json, writing
from prefdag.runtime.stage import stage
from prefdag.runtime.types import Count, Positive

REWARD_MODEL = Path("models/reward_model/heldout.json")
PLAN = Path("data/rounds/plan")
NO_PAIRS = Path("data/rounds/0/pairs")
GOOD = Path("reports/rounds/0.json")
ROOT = Path(__file__).parents[1]


@stage
def main(
    beta: Positive,
    loss: Loss,
    seed: Count,
    loss_options: LossOptions,
    constraints: Constraints,
    format_pairs: FormatPairs,
    dpo_text: DpoText,
    rounds: Rounds,
) -> None:
    from prefdag.config.judges import is_trained
    from prefdag.dependencies import fingerprint
    from prefdag.rounds.plan import KEY, SCRIPTS, plans
    from prefdag.rounds.supported import check_pins, check_training
    from prefdag.runtime.running import running_stage
    from prefdag.text.evaluation.chance import check_beats_chance

    keys = {}
    if rounds.count:
        check_training(dpo_text)
        check_pins(rounds)
        for name, judges in rounds.judges().items():
            if any(map(is_trained, judges)):  # refused before a round samples its answers
                check_beats_chance(read_json(REWARD_MODEL), name)
        keys = {name: fingerprint(script, running_stage().sections, ROOT) for name, script in SCRIPTS.items()}
    with writing(PLAN) as folder, writing(NO_PAIRS) as no_pairs, writing(GOOD) as good:
        for number, stages in plans(rounds).items():
            for name, plan in stages.items():
                write_json(folder / str(number) / f"{name}.json", plan and {KEY: keys[name], **plan})
        write_json(no_pairs / "summary.json", {"pairs": 0, "round": 0})
        write_json(good, {"go": True, "round": 0})


if __name__ == "__main__":
    main.run()
