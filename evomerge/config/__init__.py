"""The campaign file as strict models: an unknown key is an error that names the nearest valid one.

One file for each key: `models`, `space`, `fitness` (with `objectives`, `own_metric`, `agreement`),
`calibration`, `search` (optimizer, budget, initial, stages), `workers`, `study`, `trackers`;
`campaign` is the whole file, `load` reads it, `draft` writes one. This room checks the *form*.
Whether a method, a gene, a task or a model exists is said by the room that owns it
(`search.spaces`, `fitness.tasks`, `models`).
"""

from evomerge.config.agreement import AgreementConfig, AgreementTaskConfig
from evomerge.config.base import NamedConfig, Pair, PlugConfig, Scalar, Strict
from evomerge.config.calibration import CalibrationConfig, CalibrationTexts
from evomerge.config.campaign import CampaignConfig
from evomerge.config.compose import ComposeTaskConfig
from evomerge.config.draft import Draft, campaign_name, seen_from
from evomerge.config.fitness import (
    AUDIT,
    PARAMETERS,
    SPLITS,
    AnyTask,
    AuditConfig,
    EngineConfig,
    FitnessConfig,
    RaceConfig,
    SurrogateLossConfig,
    TaskConfig,
)
from evomerge.config.load import as_overrides, load_campaign, parse_campaign
from evomerge.config.models import (
    UNION,
    DtypeConfig,
    FloatType,
    ModelsConfig,
    TokenizerConfig,
    TokenOfModel,
    TokenRow,
)
from evomerge.config.objectives import (
    ConstraintConfig,
    NegativeFlipsConfig,
    NotBelowConfig,
    ObjectiveConfig,
)
from evomerge.config.own_metric import CallableConfig
from evomerge.config.paths import (
    adapter_elsewhere,
    adapters_alone,
    model_and_adapter,
    resolve_spec,
    template_at,
)
from evomerge.config.search import (
    BestTrials,
    BudgetConfig,
    DescentConfig,
    DescentOptions,
    GradientStart,
    OptimizerConfig,
    PointStart,
    PolishConfig,
    PriorStart,
    StageConfig,
    Start,
    StudyTrials,
)
from evomerge.config.space import (
    AimConfig,
    Bounds,
    DareConfig,
    LinesConfig,
    MixtureConfig,
    PathConfig,
    SpaceConfig,
    SparsifyConfig,
    WeightsConfig,
)
from evomerge.config.study import StudyConfig
from evomerge.config.trackers import NotifyConfig, TrackerConfig
from evomerge.config.workers import WorkersConfig

__all__ = [
    "AUDIT",
    "PARAMETERS",
    "SPLITS",
    "UNION",
    "AgreementConfig",
    "AgreementTaskConfig",
    "AimConfig",
    "AnyTask",
    "AuditConfig",
    "BestTrials",
    "Bounds",
    "BudgetConfig",
    "CalibrationConfig",
    "CalibrationTexts",
    "CallableConfig",
    "CampaignConfig",
    "ComposeTaskConfig",
    "ConstraintConfig",
    "DareConfig",
    "DescentConfig",
    "DescentOptions",
    "Draft",
    "DtypeConfig",
    "EngineConfig",
    "FitnessConfig",
    "FloatType",
    "GradientStart",
    "LinesConfig",
    "MixtureConfig",
    "ModelsConfig",
    "NamedConfig",
    "NegativeFlipsConfig",
    "NotBelowConfig",
    "NotifyConfig",
    "ObjectiveConfig",
    "OptimizerConfig",
    "Pair",
    "PathConfig",
    "PlugConfig",
    "PointStart",
    "PolishConfig",
    "PriorStart",
    "RaceConfig",
    "Scalar",
    "SpaceConfig",
    "SparsifyConfig",
    "StageConfig",
    "Start",
    "Strict",
    "StudyConfig",
    "StudyTrials",
    "SurrogateLossConfig",
    "TaskConfig",
    "TokenOfModel",
    "TokenRow",
    "TokenizerConfig",
    "TrackerConfig",
    "WeightsConfig",
    "WorkersConfig",
    "adapter_elsewhere",
    "adapters_alone",
    "as_overrides",
    "campaign_name",
    "load_campaign",
    "model_and_adapter",
    "parse_campaign",
    "resolve_spec",
    "seen_from",
    "template_at",
]
