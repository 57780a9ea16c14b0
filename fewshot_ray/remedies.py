"""Suggests what to do about a place's error: a setting, other credentials, or another place.

S3's error codes are from AWS's list of error responses; the others from the documentation of Alibaba's OSS, Tencent's COS, Volcengine's TOS
and MinIO.
"""

from __future__ import annotations

import os

from fewshot_ray.patience import answer_of, causes, is_full, is_transient

CHECKSUMS = "AWS_REQUEST_CHECKSUM_CALCULATION"
"""botocore's variable: `when_supported` (its default) or `when_required` (ours, since few other stores know the headers)."""

_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "InvalidTokenId", "RequestExpired"} | {
    *("UnauthorizedSSOTokenError", "SSOTokenLoadError", "TokenRetrievalError", "LoginRefreshRequired", "LoginTokenLoadError"),
}
_NO_CREDENTIALS = {"NoCredentialsError", "PartialCredentialsError", "NoAuthTokenError"}
_OTHER_REGION = {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}
_HOST_STYLE = {"SecondLevelDomainForbidden", "PathStyleDomainForbidden", "InvalidPathAccess"}
_OTHER_STORE = {"InvalidAccessKeyId", "SignatureDoesNotMatch"}
_CHECKSUM = {"XAmzContentSHA256Mismatch", "MissingContentLength"}


def checksums() -> str:
    """When uploads have a checksum header, besides the hash in their signature: the variable's value, or our default."""
    return os.environ.get(CHECKSUMS, "when_required")


def other_checksums() -> str:
    """The assignment of the variable's other value."""
    return f"{CHECKSUMS}={'when_supported' if checksums() == 'when_required' else 'when_required'}"


def remedy(error: Exception) -> str:
    """The advice for one of `place_errors`, e.g. "another place is right"."""
    answer = answer_of(error)
    code = answer.code if answer is not None else ""
    names = {code} | {type(cause).__name__ for cause in causes(error)}
    if is_full(error):
        return "freeing space there, or another place, is right"
    for known, right in (
        (_EXPIRED, "new credentials (of `aws sso login`, or AWS_SESSION_TOKEN and its keys anew) are right"),
        (_NO_CREDENTIALS, "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or AWS_PROFILE) in the environment are right"),
        (_HOST_STYLE, """FSSPEC_S3='{"config_kwargs": {"s3": {"addressing_style": "virtual"}}}' in the environment is right"""),
        (_OTHER_STORE, "the keys of the store that AWS_ENDPOINT_URL names (AWS's own where it isn't set) are right"),
        ({"RequestTimeTooSkewed"}, "this machine's clock set to the time is right"),
    ):
        if names & known:
            return right
    if names & _OTHER_REGION or (answer is not None and answer.status == 301):
        return "AWS_DEFAULT_REGION naming the bucket's own region is right"
    if names & _CHECKSUM or (answer is not None and "x-amz-checksum" in str(error)):
        return f"{other_checksums()} is right"
    return "a place that answers is right" if is_transient(error) else "a place you may read and write is right"
