"""A client of vector-api: texts in, vectors out, by way of durable background jobs.

from vector_api_client import Client

with Client("http://127.0.0.1:8000") as client:
    vectors = client.embed(["A cat sat on the mat.", "Rain is forecast."])
"""

from vector_api_client.client import Client, Page
from vector_api_client.errors import (
    BacklogFull,
    BadInput,
    BadSetting,
    Conflict,
    InputsFailed,
    NotFound,
    Refused,
    RequestRefused,
    ServiceFailed,
    TimedOut,
    TooLarge,
    TryLater,
    Unauthorized,
    Unavailable,
    VectorApiError,
)
from vector_api_client.inputs import Inputs
from vector_api_client.records import InputError, Job, JobResult, Result

__all__ = [
    "BacklogFull",
    "BadInput",
    "BadSetting",
    "Client",
    "Conflict",
    "InputError",
    "Inputs",
    "InputsFailed",
    "Job",
    "JobResult",
    "NotFound",
    "Page",
    "Refused",
    "RequestRefused",
    "Result",
    "ServiceFailed",
    "TimedOut",
    "TooLarge",
    "TryLater",
    "Unauthorized",
    "Unavailable",
    "VectorApiError",
]
