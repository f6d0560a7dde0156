// What is drawn or listed under one key is shown together: hover to see, click to keep, click elsewhere to let go.
"use strict";
(() => {
  const tip = document.getElementById("tip");
  const marks = [...document.querySelectorAll("[data-key]")];
  const byKey = new Map();
  for (const mark of marks) {
    const key = mark.dataset.key;
    if (!byKey.has(key)) byKey.set(key, []);
    byKey.get(key).push(mark);
  }
  let kept = null;

  const light = (key) => {
    for (const mark of marks) mark.classList.remove("lit");
    document.body.classList.toggle("choosing", key !== null);
    if (key !== null) for (const mark of byKey.get(key)) mark.classList.add("lit");
  };
  const target = (event) => event.target.closest("[data-key]");

  document.addEventListener("pointerover", (event) => {
    const mark = target(event);
    tip.hidden = !(mark && mark.dataset.tip);
    if (!tip.hidden) tip.textContent = mark.dataset.tip;
    light(mark ? mark.dataset.key : kept);
  });
  document.addEventListener("pointermove", (event) => {
    if (tip.hidden) return;
    const { width, height } = tip.getBoundingClientRect();
    const x = Math.min(event.clientX + 14, window.innerWidth - width - 6);
    const y = event.clientY + 18 + height > window.innerHeight ? event.clientY - height - 8 : event.clientY + 18;
    tip.style.left = `${x}px`;
    tip.style.top = `${y}px`;
  });
  document.addEventListener("click", (event) => {
    const mark = target(event);
    kept = mark && mark.dataset.key !== kept ? mark.dataset.key : null;
    light(kept);
  });
  document.body.dataset.ready = "true";
})();
