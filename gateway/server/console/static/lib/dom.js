// Elements from data. Text becomes text nodes only, so no name, log line or answer is ever parsed as HTML.

const HANDLERS = ["onclick", "oninput", "onchange", "onsubmit", "onkeydown", "ontoggle", "onpointerenter", "onfocus"];
const SVG = "http://www.w3.org/2000/svg";
const SVG_TAGS = new Set(["svg", "path", "rect", "line", "circle", "g", "text", "title-svg"]);

/** An element. Props: `class`, `style` (object of CSS properties), `onclick` and other handlers, else attributes. */
export function h(tag, props, ...children) {
  const element = SVG_TAGS.has(tag) ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(props ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (HANDLERS.includes(name)) element[name] = value;
    else if (name === "style") for (const [key, part] of Object.entries(value)) element.style.setProperty(key, part);
    else if (name === "value" && "value" in element && tag !== "option") element.value = value;
    else if (name === "checked") element.checked = value;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  append(element, children);
  return element;
}

function append(element, children) {
  for (const child of children) {
    if (child === null || child === undefined || child === false) continue;
    if (Array.isArray(child)) append(element, child);
    else element.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
}

/** Make the children of `target` like `children`, keeping focus, selection and open details where nothing changed. */
export function render(target, ...children) {
  const next = target.cloneNode(false);
  append(next, children);
  morphChildren(target, next);
}

function morph(target, next) {
  if (target.nodeName !== next.nodeName || target.nodeType !== next.nodeType) {
    target.replaceWith(next);
    return;
  }
  if (target.nodeType === Node.TEXT_NODE) {
    if (target.data !== next.data) target.data = next.data;
    return;
  }
  if (target.hasAttribute("data-opaque")) return; // it draws itself
  for (const { name } of [...target.attributes]) {
    if (name !== "style" && name !== "open" && !next.hasAttribute(name)) target.removeAttribute(name);
  }
  for (const { name, value } of next.attributes) {
    if (name !== "style" && name !== "open" && target.getAttribute(name) !== value) target.setAttribute(name, value);
  }
  if ((target.hasAttribute("style") || next.hasAttribute("style")) && target.style.cssText !== next.style.cssText) target.style.cssText = next.style.cssText;
  for (const name of HANDLERS) if (target[name] !== next[name]) target[name] = next[name];
  if (target.nodeName === "SELECT" || target.nodeName === "INPUT" || target.nodeName === "TEXTAREA") {
    if (target.nodeName === "SELECT") morphSelect(target, next);
    return; // what the operator typed stays
  }
  morphChildren(target, next);
}

function morphSelect(target, next) {
  const chosen = target.value;
  morphChildren(target, next);
  target.value = chosen;
}

function morphChildren(target, next) {
  const keyed = new Map();
  for (const node of target.childNodes) if (node.dataset?.key) keyed.set(node.dataset.key, node);
  let cursor = target.firstChild;
  for (const child of [...next.childNodes]) {
    const key = child.dataset?.key;
    const match = key ? keyed.get(key) : cursor && !cursor.dataset?.key ? cursor : null;
    if (!match) {
      target.insertBefore(child, cursor);
      continue;
    }
    if (match === cursor) cursor = cursor.nextSibling;
    else target.insertBefore(match, cursor);
    morph(match, child);
  }
  while (cursor) {
    const following = cursor.nextSibling;
    cursor.remove();
    cursor = following;
  }
}
