// The contrast of every visible text with what is behind it: [measured, those below 4.5 to 1].
// Source: WCAG 2.2, success criterion 1.4.3 and its definition of relative luminance.
const rgba = (text) => { const n = text.match(/[\d.]+/g).map(Number); return n.length === 3 ? [...n, 1] : n; };
const over = (top, under) => [0, 1, 2].map((i) => top[i] * top[3] + under[i] * (1 - top[3])).concat(1);
const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
  .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const behind = (node) => {
  const layers = [];
  for (let at = node; at; at = at.parentElement) layers.push(rgba(getComputedStyle(at).backgroundColor));
  return layers.reverse().reduce((under, top) => over(top, under), [255, 255, 255, 1]);
};
const top = document.querySelector("dialog[open]") ?? document.body;
const faint = [];
let measured = 0;
const walker = document.createTreeWalker(top, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const node = walker.currentNode.parentElement, text = walker.currentNode.textContent.trim();
  const style = getComputedStyle(node);
  if (!text || !node.checkVisibility() || node.closest("script, style, option, :disabled")) continue;
  const svg = node.closest("svg") !== null;
  const ground = behind(svg ? node.closest("figure") : node);
  const ink = over(rgba(svg ? style.fill : style.color), ground);
  const [dim, bright] = [light(ink), light(ground)].sort((a, b) => a - b);
  const ratio = (bright + 0.05) / (dim + 0.05);
  measured += 1;
  if (ratio < 4.5) faint.push(`${text.slice(0, 40)}: ${ratio.toFixed(2)}`);
}
return [measured, faint];
