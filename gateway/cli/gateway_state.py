"""What `cortex status` and `cortex top` show: one reading of a gateway's state. Blocking."""

from __future__ import annotations

from typing import Any

from gateway.cli.api_client import ApiError, GatewayAddress, get, get_health, get_models, open_client

__all__ = ["read_state"]


def read_state(address: GatewayAddress) -> dict[str, Any]:
    """`health`, `models`; with a token also `fleet` and `requests`, or in `admin_error` why they are missing.

    Raises:
        ApiError: The public port does not answer as a gateway does.
    """
    with open_client() as client:
        state: dict[str, Any] = {
            "health": get_health(client, address),
            "models": get_models(client, address),
        }
        if address.token is not None:
            try:
                state["fleet"], state["requests"] = (
                    get(client, f"{address.admin}/admin/fleet", ("nodes", "loads"), token=address.token),
                    get(client, f"{address.admin}/admin/requests", ("requests",), token=address.token)["requests"],
                )
            except ApiError as error:  # a wrong token must not hide the public part
                state["admin_error"] = str(error)
    return state
