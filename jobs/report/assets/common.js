"use strict";

// Texts go through textContent and attributes through setAttribute only: names may hold anything.
function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

const byId = (id) => document.getElementById(id);
const readData = () => JSON.parse(byId("data").textContent);
const whole = (number) => number.toLocaleString("en");

// Storage may be refused to a page from disk: then choices last as long as the page.
const memory = new Map();
function remember(key, value) {
  memory.set(key, value);
  try { localStorage.setItem(key, value); } catch { /* kept in memory */ }
}
function recall(key) {
  try { return localStorage.getItem(key) ?? memory.get(key) ?? null; } catch { return memory.get(key) ?? null; }
}
function forget(key) {
  memory.delete(key);
  try { localStorage.removeItem(key); } catch { /* was in memory only */ }
}

const THEMES = ["auto", "light", "dark"];
function setTheme(theme) {
  if (theme === "auto") document.documentElement.removeAttribute("data-theme");
  else document.documentElement.setAttribute("data-theme", theme);
  byId("theme").textContent = `Theme: ${theme}`;
  remember("doodl-theme", theme);
}
function nextTheme() {
  const now = document.documentElement.getAttribute("data-theme") ?? "auto";
  setTheme(THEMES[(THEMES.indexOf(now) + 1) % THEMES.length]);
}
function startTheme() {
  const stored = recall("doodl-theme");
  setTheme(THEMES.includes(stored) ? stored : "auto");
  byId("theme").addEventListener("click", nextTheme);
}

const isTyping = (target) =>
  target instanceof HTMLElement && (target.matches("input, select, textarea") || target.isContentEditable);
