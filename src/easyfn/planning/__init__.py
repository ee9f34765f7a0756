"""Planning before paying: what a step costs on a mesh that is not there."""

from .collectives import Collective as Collective, read_collectives as read_collectives
from .hardware import HARDWARE as HARDWARE, Hardware as Hardware, hardware_of as hardware_of
from .plan import Plan as Plan, plan as plan
from .roofline import Roofline as Roofline
from .step import sample_batch as sample_batch
