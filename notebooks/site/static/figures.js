// Every figure opens large: by a click, or by Enter on it; Escape, the button or a click closes it.
const dialog = document.createElement("dialog");
dialog.className = "figure";
dialog.innerHTML = '<button type="button" autofocus>Close</button><img alt="">';
document.body.append(dialog);
dialog.addEventListener("click", () => dialog.close());

for (const image of document.querySelectorAll(".bd-article img")) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "open-figure";
  button.setAttribute("aria-label", `Open large: ${image.alt}`);
  (image.closest("a.image-reference") ?? image).replaceWith(button); // Sphinx links what has a width to its file
  button.append(image);
  button.addEventListener("click", () => {
    const large = dialog.querySelector("img");
    large.src = image.src;
    large.alt = image.alt;
    dialog.showModal();
  });
}
