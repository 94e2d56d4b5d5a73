from .interactions import Interactions as Interactions
from .query_batches import QueryBatches as QueryBatches
from .retrieval_data import RetrievalData as RetrievalData
from .sources.load import load as load
from .sources.synthetic import SyntheticTruth as SyntheticTruth
from .sources.synthetic import synthetic as synthetic
from .sources.tables import ItemTable as ItemTable
