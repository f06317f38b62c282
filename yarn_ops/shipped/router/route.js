// Which server answers: the base where prompt and answer fit its context, else the extended model.
// Needs njs 0.7.9; written by `yarn-ops router`.

const ORIGINAL_TOKENS = $original_tokens;
// of an answer whose request names no length
const ANSWER_TOKENS = $answer_tokens;
// that the chat template puts around one empty message
const TEMPLATE_TOKENS = $template_tokens;
// what else a chat's prompt is made of
const OF_THE_TEMPLATE = ['tools', 'chat_template', 'chat_template_kwargs', 'add_generation_prompt',
                         'continue_final_message'];
// what may put into a prompt that no count here sees
const UNSEEN = ['suffix', 'functions', 'documents', 'prompt_embeds'];

async function route(r) {
    let fits = false;
    try {
        fits = await fitsTheBase(r);
    } catch (error) {  // a request that is no JSON, or too large to be read here
        r.warn('sent to the extended model: ' + error);
    }
    r.internalRedirect(fits ? '@base' : '@extended');
}

async function fitsTheBase(r) {
    const body = JSON.parse(r.requestText);
    if (UNSEEN.some((key) => body[key] != null)) {
        return false;
    }
    const answer = body.max_completion_tokens != null ? body.max_completion_tokens
        : body.max_tokens != null ? body.max_tokens : ANSWER_TOKENS;
    const room = ORIGINAL_TOKENS - answer;
    if (!Number.isInteger(answer) || answer < 0 || room <= 0) {
        return false;
    }
    const counted = body.messages != null ? await ofChat(r, body) : await ofPrompts(r, body);
    if (counted != null) {
        return counted <= room;
    }
    // No token is shorter than a byte, and JSON spends more on a message than templates do.
    return OF_THE_TEMPLATE.every((key) => body[key] == null)
        && r.requestBuffer.length + TEMPLATE_TOKENS <= room;
}

async function ofChat(r, body) {
    const texts = body.messages.every((message) => message.content == null
        || typeof message.content == 'string'
        || message.content.every((part) => part.type == 'text'));
    if (!texts) {
        return Infinity;
    }
    const asked = {model: body.model, messages: body.messages};
    OF_THE_TEMPLATE.forEach((key) => {
        if (body[key] != null) {
            asked[key] = body[key];
        }
    });
    const answer = await ask(r, '/.count/tokenize', asked);
    if (answer == null || Number.isInteger(answer.count)) {
        return answer && answer.count;
    }
    const applied = await ask(r, '/.count/apply-template', asked);  // llama.cpp
    return applied == null ? null : ofText(r, body.model, applied.prompt);
}

async function ofPrompts(r, body) {
    const several = Array.isArray(body.prompt) && !Number.isInteger(body.prompt[0]);
    const prompts = several ? body.prompt : [body.prompt];
    let most = 0;
    for (let at = 0; at < prompts.length; at++) {
        const prompt = prompts[at];
        if (typeof prompt != 'string' && !Array.isArray(prompt)) {
            return Infinity;
        }
        const count = Array.isArray(prompt) ? prompt.length : await ofText(r, body.model, prompt);
        if (count == null) {
            return null;
        }
        most = Math.max(most, count);
    }
    return most;
}

async function ofText(r, model, text) {
    const answer = await ask(r, '/.count/tokenize', {
        model: model, prompt: text, content: text, add_special: true,
    });
    return answer == null ? null : Number.isInteger(answer.count) ? answer.count : answer.tokens.length;
}

async function ask(r, path, body) {
    const reply = await r.subrequest(path, {method: 'POST', body: JSON.stringify(body)});
    return reply.status == 200 ? JSON.parse(reply.responseText) : null;
}

export default {route};
