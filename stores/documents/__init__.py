"""The documents, one file per collection."""

from stores.documents.archived_firework import ArchivedFirework
from stores.documents.calculation import Calculation
from stores.documents.campaign import Campaign
from stores.documents.campaign_metrics import CampaignMetrics
from stores.documents.candidate import Candidate
from stores.documents.candidate_summary import CandidateSummary
from stores.documents.checkpoint import Checkpoint
from stores.documents.claim import Claim
from stores.documents.evaluation import Evaluation
from stores.documents.model import Model
from stores.documents.output import Output
from stores.documents.prediction import Prediction
from stores.documents.record import Derived, Record
from stores.documents.screening_queue import ScreeningQueueItem
from stores.documents.step import Step
from stores.documents.structure import Structure
from stores.documents.training_set import TrainingSet

AUTHORITATIVE: tuple[type[Record], ...] = (
    Structure,
    Campaign,
    Candidate,
    Prediction,
    Calculation,
    Model,
    TrainingSet,
    Evaluation,
    Step,
)
DERIVED: tuple[type[Derived], ...] = (CandidateSummary, ScreeningQueueItem, CampaignMetrics)
OPERATIONAL = (Claim, Checkpoint, Output, ArchivedFirework)
"""Neither records nor derived from them: what is there while work is done, and what is kept of it."""

__all__ = [
    "AUTHORITATIVE",
    "DERIVED",
    "OPERATIONAL",
    "ArchivedFirework",
    "Calculation",
    "Campaign",
    "CampaignMetrics",
    "Candidate",
    "CandidateSummary",
    "Checkpoint",
    "Claim",
    "Derived",
    "Evaluation",
    "Model",
    "Output",
    "Prediction",
    "Record",
    "ScreeningQueueItem",
    "Step",
    "Structure",
    "TrainingSet",
]
