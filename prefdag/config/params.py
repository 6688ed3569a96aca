"""All of params.yaml, section by section."""

from prefdag.config.answer_text import AnswerText
from prefdag.config.constraints import Constraints
from prefdag.config.control_text import ControlText
from prefdag.config.download_evals import DownloadEvals
from prefdag.config.download_images import DownloadImages
from prefdag.config.download_model import DownloadModel
from prefdag.config.download_pairs import DownloadPairs
from prefdag.config.download_resnet import DownloadResnet
from prefdag.config.dpo_image import DpoImage
from prefdag.config.dpo_text import DpoText
from prefdag.config.evaluate_text import EvaluateText
from prefdag.config.format_pairs import FormatPairs
from prefdag.config.health import Health, ImageHealth
from prefdag.config.judge_text import JudgeText
from prefdag.config.label_pairs import LabelPairs
from prefdag.config.loss import Loss
from prefdag.config.loss_options import LossOptions
from prefdag.config.ref_logps import RefLogps
from prefdag.config.report import Report
from prefdag.config.resnet_warmup import ResnetWarmup
from prefdag.config.reward_model import RewardModel
from prefdag.config.reward_model_image import RewardModelImage
from prefdag.config.rounds import Rounds
from prefdag.config.sft_ref import SftRef
from prefdag.config.validate_images import ValidateImages
from prefdag.config.validate_pairs import ValidatePairs
from prefdag.runtime.types import Count, Positive, strict


@strict
class Params:
    """All of params.yaml."""

    beta: Positive
    loss: Loss
    seed: Count
    loss_options: LossOptions
    constraints: Constraints
    download_model: DownloadModel
    download_pairs: DownloadPairs
    download_evals: DownloadEvals
    download_images: DownloadImages
    download_resnet: DownloadResnet
    validate_pairs: ValidatePairs
    validate_images: ValidateImages
    format_pairs: FormatPairs
    label_pairs: LabelPairs
    sft_ref: SftRef
    ref_logps: RefLogps
    reward_model: RewardModel
    resnet_warmup: ResnetWarmup
    reward_model_image: RewardModelImage
    dpo_text: DpoText
    control_text: ControlText
    rounds: Rounds
    dpo_image: DpoImage
    health_text: Health
    health_image: ImageHealth
    evaluate_text: EvaluateText
    answer_text: AnswerText
    judge_text: JudgeText
    report: Report
