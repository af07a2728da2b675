// What to do about each problem that /health lists.

import { request, segment } from "./api.js";
import { cli } from "./format.js";
import { live } from "./live.js";
import { confirmAction } from "./widgets.js";

/** What to do about a problem. */
export function remedyOf({ code, subject }) {
  const post = (path) => () => request("POST", path, {});
  switch (code) {
    case "node_down":
      return { kind: "down", text: "Look at the neuron and its log on that host; requests go to other hosts meanwhile.", command: cli("neuron", "status") .replace(/ --url.*/, "") };
    case "node_drained":
      return { kind: "drained", text: "Undrain it when its maintenance is over.", command: cli("undrain", subject), label: "Undrain…",
        button: () => confirmAction(`Undrain ${subject}`, `${subject} gets new requests again.`, cli("undrain", subject), "Undrain", post(`/admin/nodes/${segment(subject)}/undrain`), `${subject} gets requests again`) };
    case "alias_unservable":
      return { kind: "unservable", text: "Point it at a model that can be served, or make room for its own.", label: "Open the alias", button: () => (location.hash = `#/aliases/${segment(subject)}`) };
    case "model_unservable":
      return { kind: "impaired", text: "Start a neuron that meets its requirements, or change its table in models.toml.", command: cli("load", subject) };
    case "file_not_in_force":
      return subject === (live.alias?.catalogue.path ?? "models.toml")
        ? { kind: "impaired", text: "Correct the file, or restore the one in force.", command: cli("alias", "rollback") }
        : { kind: "impaired", text: "Correct the file on the gateway's host; the command checks it.", command: "cortex check" };
    case "swap_failed":
      return { kind: "swap_failed", text: "Try again once the reason is gone, or point the alias elsewhere.", command: cli("alias", "retry", subject), label: "Try again…",
        button: () => confirmAction(`Retry the swap of ${subject}`, "The gateway loads and probes the new target again.", cli("alias", "retry", subject), "Try again", post(`/admin/swaps/${segment(subject)}/retry`), "The swap goes on") };
    case "rollout_rolled_back":
      return { kind: "rolled_back", text: "Find out why the guard acted, then acknowledge.", command: cli("alias", "rollout", subject, "--acknowledge"), label: "Acknowledge",
        button: () => confirmAction(`Acknowledge the rollback of ${subject}`, "The rollback is no longer listed as a problem.", cli("alias", "rollout", subject, "--acknowledge"), "Acknowledge", post(`/admin/aliases/${segment(subject)}/rollout/acknowledge`), "Acknowledged") };
    case "audit_unwritable":
    case "history_unwritable":
      return { kind: "impaired", text: "Free space on its disk, or correct its permissions; nothing is lost while the gateway runs." };
    case "ledger_behind":
      return { kind: "impaired", text: "Make the store reachable or writable; the command, on the gateway's host, says what is wrong.", command: "cortex store check" };
    case "certificate_not_in_force":
      return { kind: "impaired", text: "Put a certificate and the key that fits it in place; the gateway reads them within a second.", command: "cortex check" };
    case "certificate_expires":
      return { kind: "impaired", text: "Renew the certificate; the gateway reads the new file within a second.", command: "cortex check" };
    default:
      return { kind: "impaired", text: "The log has more about it." };
  }
}
