"""config.toml as frozen values; every mistake in it is found before anything starts."""

from node.config.reading import defaults as defaults
from node.config.reading import load as load
from node.config.reading import product_of as product_of
from node.config.sections import ABOUT_THE_FILE as ABOUT_THE_FILE
from node.config.sections import FINDING_OPTIONS as FINDING_OPTIONS
from node.config.sections import JUDGING_OPTIONS as JUDGING_OPTIONS
from node.config.sections import SENDER as SENDER
from node.config.sections import SLICE_OPTIONS as SLICE_OPTIONS
from node.config.sections import Commitment as Commitment
from node.config.sections import Completion as Completion
from node.config.sections import Condition as Condition
from node.config.sections import Config as Config
from node.config.sections import DeliverySettings as DeliverySettings
from node.config.sections import Destination as Destination
from node.config.sections import ExpectedSender as ExpectedSender
from node.config.sections import ModelEntry as ModelEntry
from node.config.sections import Notify as Notify
from node.config.sections import ReportAddress as ReportAddress
from node.config.sections import Route as Route
from node.config.sections import Storage as Storage
from node.config.sections import Tls as Tls
