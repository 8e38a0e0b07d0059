// Measures the page it runs in and leaves the result in an attribute of <html>.
(() => {
  const root = document.documentElement;
  const width = root.clientWidth;
  const channels = (color) => (color.match(/[\d.]+/g) || [0, 0, 0, 0]).map(Number);
  const luminance = ([r, g, b]) => {
    const line = (c) => { c /= 255; return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; };
    return 0.2126 * line(r) + 0.7152 * line(g) + 0.0722 * line(b);
  };
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const color = channels(getComputedStyle(at).backgroundColor);
      if (color.length < 4 || color[3] > 0) return color;
    }
    return [255, 255, 255];
  };
  const name = (element) =>
    element.tagName.toLowerCase() + (element.className.baseVal ?? element.className ? "." + (element.className.baseVal ?? element.className) : "");
  let texts = 0, contrast = 21, palest = "";
  const wide = [];
  for (const element of document.body.querySelectorAll("*")) {
    if (element.tagName === "SCRIPT") continue;
    const box = element.getBoundingClientRect();
    if (box.width === 0 || box.height === 0 || !element.checkVisibility()) continue;
    // What scrolls by itself may hold what is wider than the page.
    if (box.right > width + 0.5 && !element.closest(".wide") && wide.length < 5) wide.push(name(element));
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own) continue;
    texts += 1;
    const [a, b] = [luminance(channels(getComputedStyle(element).color)), luminance(behind(element))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < contrast) [contrast, palest] = [ratio, name(element)];
  }
  root.dataset.measured = JSON.stringify({
    width, needed: root.scrollWidth, height: root.scrollHeight,
    dark: matchMedia("(prefers-color-scheme: dark)").matches,
    texts, contrast, palest, wide,
  });
})();
