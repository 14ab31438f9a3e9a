"use strict";
// What a report of numbers does: it draws its plots. It sends nothing and asks for nothing.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const pending = new Map([...document.querySelectorAll("[data-plot]")].map((element) => [element, data.plots[element.dataset.plot]]));
  const draw = (element) => {
    const item = pending.get(element);
    pending.delete(element);
    if (item) Bokeh.embed.embed_item(item, element);
  };
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) { watcher.unobserve(entry.target); draw(entry.target); }
  }, {rootMargin: "200px"});
  for (const element of pending.keys()) watcher.observe(element);
  addEventListener("beforeprint", () => { for (const element of [...pending.keys()]) draw(element); });
})();
