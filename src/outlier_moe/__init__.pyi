from outlier_moe.api import Recording as Recording
from outlier_moe.api import compare as compare
from outlier_moe.api import load as load
from outlier_moe.api import record as record

__version__: str
